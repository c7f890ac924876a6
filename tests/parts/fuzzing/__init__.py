"""Bad input of every kind, made by numbers, and a worker that tries it under watch."""
