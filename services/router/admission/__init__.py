"""It is responsible for who may ask: tenants, by records that an administrator signed."""
