"""A centre as a process of its own: ``serve.py FOLDER PORT``; ends well on SIGTERM."""

import signal
import sys
from pathlib import Path

from fake_decoder import MODEL_HASH, FakeDecoder

from central.config import CentralConfig
from central.service import Service
from firmware_py.runtime.log import Log

folder, port = Path(sys.argv[1]), sys.argv[2]
central = {"listen": f"tcp://127.0.0.1:{port}", "data_dir": folder, "deadline_s": 0.5, "pictures": False}
config = CentralConfig.model_validate({"central": central, "model": [{"bundle": "-", "decoder": "-"}]})
service = Service(config, {MODEL_HASH: FakeDecoder()}, Log(folder / "central.jsonl"))
signal.signal(signal.SIGTERM, service.stop)
service.run()
