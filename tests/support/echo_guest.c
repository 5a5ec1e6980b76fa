// Sends its arguments, a packet each, to the VMBus device behind /dev/uio0 and prints what comes back, a line each.
//
//	gcc -O1 -static -o echo_guest echo_guest.c
//
// Opening /dev/uio0 opens the channel. Map 0 holds both rings, the guest's outgoing one first; a ring is a page of
// indices and then its data. Source: Linux drivers/uio/uio_hv_generic.c, include/linux/hyperv.h.
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct ring {
	volatile uint32_t write, read, mask, pending;
};

struct packet { // struct vmpacket_descriptor
	uint16_t type, offset8, length8, flags;
	uint64_t transaction;
	char payload[240];
};

static uint32_t data_size;

static void copy(struct ring *ring, uint32_t at, void *data, uint32_t size, int into_ring)
{
	char *bytes = (char *)ring + 4096;
	for (uint32_t n = 0; n < size; n++) {
		char *there = bytes + (at + n) % data_size, *here = (char *)data + n;
		*(into_ring ? there : here) = *(into_ring ? here : there);
	}
}

int main(int count, char **words)
{
	char text[32] = "";
	int sizes = open("/sys/class/uio/uio0/maps/map0/size", O_RDONLY), uio = open("/dev/uio0", O_RDWR);
	if (sizes < 0 || uio < 0 || read(sizes, text, sizeof text - 1) < 1)
		return perror("uio0"), 1;
	size_t size = strtoul(text, 0, 0);
	struct ring *out = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, uio, 0);
	if (out == MAP_FAILED)
		return perror("mmap"), 1;
	struct ring *in = (struct ring *)((char *)out + size / 2);
	data_size = size / 2 - 4096;
	for (int n = 1; n < count; n++) {
		struct packet packet = {.type = 6, .offset8 = 2, .length8 = 2 + (strlen(words[n]) + 7) / 8};
		uint64_t trailer = (uint64_t)out->write << 32;
		uint32_t length = packet.length8 * 8, at = out->write, one = 1;
		strncpy(packet.payload, words[n], sizeof packet.payload - 1);
		copy(out, at, &packet, length, 1);
		copy(out, (at + length) % data_size, &trailer, 8, 1);
		__sync_synchronize(); // the data is there before the index says so
		out->write = (at + length + 8) % data_size;
		__sync_synchronize();
		if (write(uio, &one, sizeof one) != sizeof one) // hv_uio_irqcontrol: signals the host
			return perror("signal"), 1;
		for (int wait = 0; in->read == in->write; wait++) {
			if (wait == 3000)
				return fprintf(stderr, "no answer\n"), 1;
			usleep(10000);
		}
		copy(in, in->read, &packet, sizeof packet, 0);
		packet.payload[sizeof packet.payload - 1] = 0;
		printf("%.*s\n", packet.length8 * 8 - 16, packet.payload);
		in->read = (in->read + packet.length8 * 8 + 8) % data_size;
	}
	return 0;
}
