"""As many subtasks for each step as its load asks for, while the job runs: pure decisions, and who carries them out."""
