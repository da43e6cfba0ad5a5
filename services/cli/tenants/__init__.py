"""It is responsible for `teemesh tenants`: who may use the routers, by the tenant administrator's word alone."""
