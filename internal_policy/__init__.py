"""See what every layer, attention block and FFN of a language model would say next, and how sure it is."""
