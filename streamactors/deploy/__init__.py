"""Where subtasks run: in this process (`local`)."""
