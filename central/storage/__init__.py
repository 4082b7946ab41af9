"""The centre's database: journal and maps."""
