"""What runs leave behind, shown: figures, tables, the report."""
