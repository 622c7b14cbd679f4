"""Kafka and the process: events, topics, the updater, the command line."""
