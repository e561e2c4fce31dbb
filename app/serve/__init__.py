"""The server: a page for people and an API for programs, on one port."""
