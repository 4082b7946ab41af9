"""Sign bundles and roll them out to devices."""
