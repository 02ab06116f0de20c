"""The report of an export: tables, pictures and measured speed."""
