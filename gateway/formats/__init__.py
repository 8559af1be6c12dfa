"""Payload formats: columns of samples in, messages out. Pure; no format sees an OPC UA object."""
