// The driver of the echo device in user space, over uio_hv_generic: the channel's rings, without a kernel driver.
//
//	gcc -O2 -static -o uio_echo uio_echo.c
//	uio_echo [-u N] echo WORD...        each word goes to the device and back
//	uio_echo [-u N] sink COUNT SIZE     packets to the host as fast as they go, and the rate
//	uio_echo [-u N] source COUNT SIZE   packets from the host
//	uio_echo [-u N] pingpong COUNT SIZE one packet there and back at a time
//	uio_echo [-u N] invert PAGES        memory of this program, shared by a GPA_DIRECT packet, is inverted by the host
//	uio_echo [-u N] pages SIZE          the receive buffer, which uio_hv_generic shares by a GPADL, is written by the host
//	uio_echo [-u N] channels COUNT SEC  the host offers sub-channels, which uio_hv_generic opens; kept for SEC seconds
//	uio_echo [-u N] hold                keeps the channel open
//
// Opening /dev/uioN opens the channel. Map 0 holds both rings, the guest's outgoing one first; a ring is a page of
// indices and then its data. Map 2 is the monitor pages' second half of signals, map 3 the receive buffer.
// Sources: Linux drivers/uio/uio_hv_generic.c, include/linux/hyperv.h; pyvmm's devices/echo/protocol.py.
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct ring {
	volatile uint32_t write, read, mask, pending;
};

struct packet { // struct vmpacket_descriptor
	uint16_t type, offset8, length8, flags;
	uint64_t transaction;
};

struct request {
	char magic[8];
	uint32_t command, count, size, milliseconds;
};

enum { ECHO, SINK, SOURCE, LATER, CHANNELS, PAGES };
enum { TRANSFER_PAGES = 7, IN_BAND = 6, GPA_DIRECT = 9, COMPLETION = 11 };
enum { LARGEST = 64 << 10, HEADER = sizeof(struct packet) };

static int uio, number;
static struct ring *out, *in;
static uint32_t data_size;
static volatile uint32_t *monitor_page;
static int monitor_id;
static char buffer[LARGEST];

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static char *file(const char *format, int n)
{
	static char path[200], text[200];
	snprintf(path, sizeof path, format, n);
	int fd = open(path, O_RDONLY);
	ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (fd >= 0)
		close(fd);
	text[size < 0 ? 0 : size] = 0;
	return size < 0 ? NULL : text;
}

static void *map(int index, size_t *size)
{
	char format[80], *text;
	snprintf(format, sizeof format, "/sys/class/uio/uio%%d/maps/map%d/size", index);
	text = file(format, number);
	if (!text)
		return NULL;
	*size = strtoul(text, 0, 0);
	void *found = mmap(0, *size, PROT_READ | PROT_WRITE, MAP_SHARED, uio, index * 4096L);
	return found == MAP_FAILED ? NULL : found;
}

static void copy(struct ring *ring, uint32_t at, void *data, uint32_t size, int into_ring)
{
	char *bytes = (char *)ring + 4096, *here = data;
	at %= data_size;
	uint32_t first = size < data_size - at ? size : data_size - at;
	if (into_ring) {
		memcpy(bytes + at, here, first);
		memcpy(bytes, here + first, size - first);
	} else {
		memcpy(here, bytes + at, first);
		memcpy(here + first, bytes, size - first);
	}
}

static void signal_host(void)
{
	uint32_t one = 1;
	if (monitor_page) // trigger group n: pending at 8 + 8 * n
		__sync_fetch_and_or(&monitor_page[2 + 2 * (monitor_id / 32)], 1u << monitor_id % 32);
	else if (write(uio, &one, sizeof one) != sizeof one) // hv_uio_irqcontrol: clears our mask too
		fail("signal");
}

static void wait_for_host(void)
{
	uint32_t events;
	if (read(uio, &events, sizeof events) != sizeof events)
		fail("/dev/uio: the device is gone");
}

// Store one packet and signal if the host sleeps. Waits while the ring is full.
static void put(int type, int flags, uint64_t transaction, void *descriptor, uint32_t descriptor_size, void *payload,
		uint32_t size)
{
	uint32_t padded = (size + 7) / 8 * 8, length = HEADER + descriptor_size + padded, whole = length + 8;
	struct packet packet = {type, (HEADER + descriptor_size) / 8, length / 8, flags, transaction};
	for (;;) {
		uint32_t old = out->write, used = (old - out->read + data_size) % data_size;
		if (whole < data_size - used) {
			uint64_t trailer = (uint64_t)old << 32, zero = 0;
			out->pending = 0;
			copy(out, old, &packet, HEADER, 1);
			copy(out, old + HEADER, descriptor, descriptor_size, 1);
			copy(out, old + HEADER + descriptor_size, payload, size, 1);
			copy(out, old + HEADER + descriptor_size + size, &zero, padded - size, 1);
			copy(out, old + length, &trailer, 8, 1);
			__sync_synchronize(); // the data is there before the index says so
			out->write = (old + whole) % data_size;
			__sync_synchronize();
			if (!out->mask && out->read == old)
				signal_host();
			return;
		}
		out->pending = whole; // the host signals when there is room
		in->mask = 0;
		__sync_synchronize();
		used = (out->write - out->read + data_size) % data_size;
		if (whole >= data_size - used)
			wait_for_host();
	}
}

// Take the next packet, up to LARGEST bytes after its header into `buffer`; its header.
static struct packet take(uint32_t *offset, uint32_t *size)
{
	struct packet packet;
	while (in->read == in->write) {
		in->mask = 0;
		__sync_synchronize();
		if (in->read == in->write)
			wait_for_host();
	}
	in->mask = 1;
	uint32_t at = in->read;
	copy(in, at, &packet, HEADER, 0);
	*size = packet.length8 * 8 - HEADER;
	*offset = packet.offset8 * 8 - HEADER;
	if (*size > LARGEST || *offset > *size)
		exit(fprintf(stderr, "a packet of %u bytes\n", *size));
	copy(in, at + HEADER, buffer, *size, 0);
	__sync_synchronize();
	in->read = (at + HEADER + *size + 8) % data_size;
	__sync_synchronize();
	uint32_t pending = in->pending, room = data_size - (in->write - in->read + data_size) % data_size;
	if (pending && room > pending)
		signal_host();
	return packet;
}

static void command(int what, uint32_t count, uint32_t size)
{
	struct request request = {"pvm_echo", what, count, size, 0};
	memcpy(request.magic, "pvm_echo", 8);
	put(IN_BAND, 0, 0, 0, 0, &request, sizeof request);
}

static struct packet report(int type)
{
	uint32_t offset, size;
	struct packet packet = take(&offset, &size);
	if (packet.type != type)
		exit(fprintf(stderr, "packet type %d, not %d\n", packet.type, type));
	return packet;
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void rate(const char *what, uint32_t count, uint32_t size, double seconds)
{
	printf("%s: %u packets of %u bytes in %.3f s, %.0f a second\n", what, count, size, seconds, count / seconds);
}

static void echo_words(int count, char **words)
{
	for (int n = 0; n < count; n++) {
		uint32_t offset, size;
		put(IN_BAND, 0, 0, 0, 0, words[n], strlen(words[n]));
		take(&offset, &size);
		buffer[size] = 0;
		printf("%s\n", buffer + offset);
	}
}

static void sink(uint32_t count, uint32_t size)
{
	double start = now();
	command(SINK, count, 0);
	for (uint32_t n = 0; n < count; n++)
		put(IN_BAND, 0, 0, 0, 0, buffer, size);
	report(IN_BAND);
	if (*(uint32_t *)(buffer + 12) != count)
		exit(fprintf(stderr, "the host counted %u packets\n", *(uint32_t *)(buffer + 12)));
	rate("sink", count, size, now() - start);
}

static void source(uint32_t count, uint32_t size)
{
	double start = now();
	command(SOURCE, count, size);
	for (uint32_t n = 0; n < count; n++) {
		uint32_t offset, got;
		take(&offset, &got);
		if (*(uint64_t *)(buffer + offset) != n)
			exit(fprintf(stderr, "packet %u says it is %u\n", n, *(uint32_t *)(buffer + offset)));
	}
	rate("source", count, size, now() - start);
}

static void pingpong(uint32_t count, uint32_t size)
{
	double start = now();
	for (uint32_t n = 0; n < count; n++) {
		uint32_t offset, got;
		put(IN_BAND, 0, 0, 0, 0, buffer, size);
		take(&offset, &got);
	}
	rate("pingpong", count, size, now() - start);
}

static void invert(uint32_t count)
{
	uint64_t descriptor[2 + 512] = {(uint64_t)1 << 32, count * 4096};
	unsigned char *memory = mmap(0, count * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (memory == MAP_FAILED || pagemap < 0 || mlock(memory, count * 4096))
		fail("memory");
	for (uint32_t n = 0; n < count * 4096; n++)
		memory[n] = n * 7;
	for (uint32_t n = 0; n < count; n++) {
		uint64_t entry;
		if (pread(pagemap, &entry, 8, ((uintptr_t)memory / 4096 + n) * 8) != 8)
			fail("pagemap");
		descriptor[2 + n] = entry & ((1ULL << 55) - 1);
	}
	put(GPA_DIRECT, 1, 0x1234, descriptor, (2 + count) * 8, "", 0);
	if (report(COMPLETION).transaction != 0x1234)
		exit(fprintf(stderr, "another transaction\n"));
	for (uint32_t n = 0; n < count * 4096; n++)
		if (memory[n] != (unsigned char)~(n * 7))
			exit(fprintf(stderr, "byte %u is %u\n", n, memory[n]));
	printf("invert: %u bytes\n", count * 4096);
}

static void pages(uint32_t size)
{
	size_t whole;
	unsigned char *memory = map(3, &whole);
	char *name = file("/sys/class/uio/uio%d/maps/map3/name", number); // recv:ID
	if (!memory || !name || strncmp(name, "recv:", 5))
		exit(fprintf(stderr, "no receive buffer: Linux 7.2 shares one with network devices only\n"));
	command(PAGES, strtoul(name + 5, 0, 0), size);
	struct packet packet = report(TRANSFER_PAGES);
	for (uint32_t n = 0; n < size; n++)
		if (memory[n] != (unsigned char)n)
			exit(fprintf(stderr, "byte %u is %u\n", n, memory[n]));
	put(COMPLETION, 0, packet.transaction, 0, 0, "", 0);
	printf("pages: %u bytes of %zu\n", size, whole);
}

static void channels(uint32_t count, uint32_t seconds)
{
	// hv_uio_irqcontrol writes to the ring of each sub-channel that was offered, also of one that is not open yet:
	// no signal of ours may come between (seen in Linux 6.12).
	struct request request = {"pvm_echo", CHANNELS, count, 0, 300};
	memcpy(request.magic, "pvm_echo", 8);
	put(IN_BAND, 0, 0, 0, 0, &request, sizeof request);
	report(IN_BAND);
	sleep(seconds);
	printf("channels: %u\n", count);
}

int main(int count, char **words)
{
	if (count > 2 && !strcmp(words[1], "-u"))
		number = atoi(words[2]), count -= 2, words += 2;
	uint32_t first = count > 2 ? strtoul(words[2], 0, 0) : 0, second = count > 3 ? strtoul(words[3], 0, 0) : 0;
	char path[40], *text;
	size_t size;
	snprintf(path, sizeof path, "/dev/uio%d", number);
	if (count < 2 || second > LARGEST || (!strcmp(words[1], "invert") && first > 512))
		return fprintf(stderr, "see the file's first lines\n"), 2;
	uio = open(path, O_RDWR);
	out = uio < 0 ? NULL : map(0, &size);
	if (!out)
		fail(path);
	in = (struct ring *)((char *)out + size / 2);
	data_size = size / 2 - 4096;
	text = file("/sys/class/uio/uio%d/device/monitor_id", number);
	monitor_id = text ? atoi(text) : 0;
	text = file("/sys/class/uio/uio%d/device/device", number);
	if (getenv("MONITORED")) // the offer's flag is not in sysfs
		monitor_page = map(2, &size);
	char *what = words[1];
	if (!strcmp(what, "echo"))
		echo_words(count - 2, words + 2);
	else if (!strcmp(what, "sink"))
		sink(first, second);
	else if (!strcmp(what, "source"))
		source(first, second);
	else if (!strcmp(what, "pingpong"))
		pingpong(first, second);
	else if (!strcmp(what, "invert"))
		invert(first);
	else if (!strcmp(what, "pages"))
		pages(first);
	else if (!strcmp(what, "channels"))
		channels(first, second);
	else if (!strcmp(what, "hold"))
		for (printf("open\n"), fflush(stdout);;)
			wait_for_host();
	else
		return fprintf(stderr, "no command %s\n", what), 2;
	return 0;
}
