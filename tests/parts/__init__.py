"""What tests share: small models and inputs, fakes, checks, and the programs that tests start."""
