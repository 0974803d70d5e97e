"""Contents of people's disks and servers, against the readers of clips, captions and answers."""
