"""Standing questions of commands and server: how they are kept, and how events reach people and programs."""
