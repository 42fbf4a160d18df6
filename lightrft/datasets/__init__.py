"""Rows -> records -> prompts -> draws: sources, formats, tasks, and the resumable loader."""
