"""What people's disks and servers hold, against the readers of clips, captions and answers."""
