"""Images on the way: cut into segments, put into stores, fetched again, and used before they are whole."""
