"""What only upstream's users type, and the formats of others, on top of all the rest."""
