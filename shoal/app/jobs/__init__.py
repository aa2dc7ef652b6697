"""Work that a command does itself, over the services: trainings, backfills, Spark runs."""
