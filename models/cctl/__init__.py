"""What CCTL is made of besides layers: towers, losses, REINFORCE, who helps whom."""
