"""The interview questions of ``interview/questions``: loaded, proved, asked."""
