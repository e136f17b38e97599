"""Running a plan: channels, routing, chains, the subtask actor and its loop, and the job that drives attempts."""
