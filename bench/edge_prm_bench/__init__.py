"""How fast, how big, how faithful: the commands behind the README's tables."""
