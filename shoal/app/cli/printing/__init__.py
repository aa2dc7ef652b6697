"""What commands print: JSON, tables, sentences, pictures."""
