"""The maze study of the EBU paper."""
