"""What keeps the repository and its site honest; nothing here is imported by the engine."""
