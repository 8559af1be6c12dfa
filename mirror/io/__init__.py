"""The shells of the shared contract: S3-compatible stores and SQLite files."""
