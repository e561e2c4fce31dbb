"""The page: what a person with a browser sees and does. `page.mount_page` puts it on the server's app."""
