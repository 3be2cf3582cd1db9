"""Tables, heat maps and pages, from plain values."""
