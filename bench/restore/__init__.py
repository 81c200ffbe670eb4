"""What bench/run is made of: one module for each way to start a server, and what they share."""
