/* A C program with Thaw's header: ready, waits, and says what came of it. */
#include "thaw.h"

static void restored_as(void* name) {
  thaw_identity("replica", (char*)name, 64);
  printf("on_restore as %s\n", (char*)name);
  fflush(stdout);
}

int main(void) {
  static char name[64];
  char replica[64] = "?";
  int restored;
  if (!thaw_inside() || !thaw_checkpoint_enabled()) return 2;
  if (thaw_on_restore(restored_as, name) != 0) return 6;
  if (thaw_wait_for_restore(20) != 0) return 3;
  if (thaw_ready() != 0) {
    perror("thaw_ready");
    return 4;
  }
  restored = thaw_wait_for_restore(-1);
  if (thaw_identity("replica", replica, sizeof replica) != 0) return 5;
  printf("waited: %d as %s\n", restored, replica);
  fflush(stdout);
  for (;;) pause();
}
