"""The operator's page: what the centre holds, in a browser and as JSON; it only reads, on a thread of its own."""
