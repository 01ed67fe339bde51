"""The lens grid: layers x tokens, with the top token written in each cell."""
