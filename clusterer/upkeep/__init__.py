"""What the clusterer does without being asked: schedules, drift, new points."""
