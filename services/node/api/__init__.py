"""What a body of each endpoint may be made of: two APIs' references as tables, and one walk over them."""
