"""What replies to the policy between its turns: environments and tools, in processes of their own."""
