"""What only a notebook needs: objects as HTML, and progress."""
