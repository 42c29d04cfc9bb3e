"""What is on disk: records, runs, searches, query results."""
