"""One line instead of a pipeline: what `freshet query` says, chooses and answers."""
