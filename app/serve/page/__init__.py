"""The page: what a person with a browser sees and does."""

from vstream.app.serve.page.page import mount_page

__all__ = ["mount_page"]
