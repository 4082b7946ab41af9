"""What SQLite is asked while a test is at work."""

from central.storage.database import connect


def asked_by(monkeypatch, module) -> list[str]:
    """A list that grows with every statement on connections that ``module`` opens."""
    asked: list[str] = []

    def traced(*arguments, **options):
        database = connect(*arguments, **options)
        database.set_trace_callback(asked.append)
        return database

    monkeypatch.setattr(module, "connect", traced)
    return asked
