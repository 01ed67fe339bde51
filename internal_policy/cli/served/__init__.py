"""What `internal-policy mcp` answers, and from which folders."""
