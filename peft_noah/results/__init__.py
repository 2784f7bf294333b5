"""Numbers as text, tables, pictures and model cards."""
