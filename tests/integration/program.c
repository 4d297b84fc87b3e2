/* A program that runs out of the pool in tests: does what its first argument says. */
#include <elf.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/wait.h>
#include <unistd.h>

static int data = 7;
static char bss[50000];

static void* Add(void* number) {
  ++*(int*)number;
  return NULL;
}

static int IsZero(const char* bytes, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (bytes[i] != 0) return 0;
  }
  return 1;
}

/* Uses so many bytes of stack. */
static int Deep(size_t bytes) {
  volatile char frame[4096];
  frame[0] = 1;
  return bytes < sizeof(frame) ? frame[0] : Deep(bytes - sizeof(frame)) + frame[0];
}

int main(int argc, char** argv) {
  const char* what = argc > 1 ? argv[1] : "";
  if (strcmp(what, "arguments") == 0) {
    for (int i = 0; i < argc; ++i) printf("[%s]", argv[i]);
    printf(" %s %s\n", getenv("GREETING"), (const char*)getauxval(AT_EXECFN));
    return 42;
  }
  if (strcmp(what, "auxv") == 0) {
    const Elf64_Phdr* header = (const Elf64_Phdr*)getauxval(AT_PHDR);
    int loads = 0;
    for (unsigned long i = 0; i < getauxval(AT_PHNUM); ++i) loads += header[i].p_type == PT_LOAD;
    printf("page %lu loads %d base %lu random %d\n", getauxval(AT_PAGESZ), loads, getauxval(AT_BASE),
           getauxval(AT_RANDOM) != 0);
    return 0;
  }
  if (strcmp(what, "memory") == 0) {
    printf("data %d bss %s", data, IsZero(bss, sizeof(bss)) ? "zero" : "dirty");
    memset(bss, 1, sizeof(bss));
    pthread_t thread;
    if (pthread_create(&thread, NULL, Add, &data) != 0 || pthread_join(thread, NULL) != 0) return 1;
    printf(" then %d\n", data);
    return 0;
  }
  if (strcmp(what, "stack") == 0) {
    printf("deep %d\n", Deep(strtoul(argv[2], NULL, 10)) > 0);
    return 0;
  }
  if (strcmp(what, "fork") == 0) {
    /* Its data are not the child's, so the child dies before it can change them. */
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) _exit(data++ == 7 ? 0 : 1);
    int status;
    waitpid(child, &status, 0);
    printf("data %d, child %s\n", data, WIFSIGNALED(status) ? "died" : "lived");
    return 0;
  }
  if (strcmp(what, "abort") == 0) abort();
  /* Echoes its input, and says first that it runs. */
  printf("runs, data %d\n", data++);
  fflush(stdout);
  for (int c = getchar(); c != EOF; c = getchar()) {
    putchar(c);
    if (c == '\n') fflush(stdout);
  }
  return 0;
}
