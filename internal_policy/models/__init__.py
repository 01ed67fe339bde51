"""Any Hugging Face model in, hidden states and policies out."""
