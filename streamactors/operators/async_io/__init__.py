"""Steps whose calls wait for something outside: many at once, in one subtask."""
