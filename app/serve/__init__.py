"""The page and the API: one server for browsers and programs."""
