"""What one sees of an export: tables, pictures, measured speed."""
