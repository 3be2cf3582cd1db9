"""The front door: command line, embedded corpora, the demo, the report."""
