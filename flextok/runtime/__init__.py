"""What work stands on, whatever it is: Ray, processes, locks, progress, interrupts, memory."""
